# SPDX-License-Identifier: Apache-2.0
# How every target is compiled, and the functions that make modules and programs.

# Everything of ours: warnings, arithmetic without contraction (the same bits from every compiler), no machine's paths in texts.
add_library(isgq_compile INTERFACE)
target_compile_definitions(isgq_compile INTERFACE _GNU_SOURCE $<$<BOOL:${ISGQ_ASSERT}>:ISGQ_ASSERT>)
target_compile_options(
    isgq_compile
    INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Wmissing-prototypes
              -ffp-contract=off -fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=)
if(ISGQ_WERROR)
    target_compile_options(isgq_compile INTERFACE -Werror)
endif()
if(ISGQ_SANITIZE) # a comma list: not for $<BOOL:>
    # gcc's own advice: instrumented code makes its flow analysis see what is not there.
    target_compile_options(isgq_compile INTERFACE -fsanitize=${ISGQ_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer
                                                  $<$<C_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
    target_link_options(isgq_compile INTERFACE -fsanitize=${ISGQ_SANITIZE})
else() # clang's sanitized libraries leave the run time's symbols undefined
    target_link_options(isgq_compile INTERFACE -Wl,--no-undefined)
endif()
target_link_options(isgq_compile INTERFACE -Wl,--as-needed)

# Parts of the library and tests of its inside see all folders.
add_library(isgq_inside INTERFACE)
target_include_directories(isgq_inside INTERFACE ${PROJECT_SOURCE_DIR}/libisgqcoll/include ${PROJECT_SOURCE_DIR}/libisgqcoll
                                                 ${PROJECT_SOURCE_DIR})
target_link_libraries(isgq_inside INTERFACE isgq_compile)

# isgq_module(name source library...): isgqcoll-NAME.so, which the library loads when it is first needed. Exports iq_module_* only.
function(isgq_module name source)
    set(target isgqcoll-${name})
    set(map ${PROJECT_SOURCE_DIR}/libisgqcoll/module.map)
    add_library(${target} MODULE ${source})
    target_link_libraries(${target} PRIVATE isgq_inside ${ARGN})
    target_link_options(${target} PRIVATE -Wl,--version-script=${map})
    set_target_properties(${target} PROPERTIES PREFIX "" C_VISIBILITY_PRESET default LINK_DEPENDS ${map}
                                               LIBRARY_OUTPUT_DIRECTORY ${ISGQ_MODULE_OUTPUT_DIRECTORY})
    set_property(GLOBAL APPEND PROPERTY ISGQ_MODULES ${name})
    install(TARGETS ${target} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/isgqcoll COMPONENT runtime)
endfunction()

# isgq_program(name SOURCES ... [LIBRARIES ...]): a program, installed; it sees the public headers only.
file(RELATIVE_PATH isgq_bin_to_lib /prefix/${CMAKE_INSTALL_BINDIR} /prefix/${CMAKE_INSTALL_LIBDIR})
function(isgq_program name)
    cmake_parse_arguments(program "" "" "SOURCES;LIBRARIES" ${ARGN})
    add_executable(${name} ${program_SOURCES})
    target_link_libraries(${name} PRIVATE isgq_compile isgqcoll isgq_programs_common ${program_LIBRARIES})
    set_target_properties(${name} PROPERTIES INSTALL_RPATH "$ORIGIN/${isgq_bin_to_lib}")
    add_dependencies(programs ${name})
    install(TARGETS ${name} RUNTIME COMPONENT runtime)
endfunction()

# Everything that a user runs, without the tests.
add_custom_target(programs)
