# SPDX-License-Identifier: Apache-2.0
# The installed tree: library, headers (those for C++ are in bindings/cpp), CMake package, pkg-config file. Nothing in it holds an absolute path, so it may be moved.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/isgqcoll)
install(
    TARGETS isgqcoll EXPORT isgqcoll
    LIBRARY COMPONENT runtime NAMELINK_COMPONENT development
    INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES libisgqcoll/include/isgqcoll.h libisgqcoll/include/isgqcoll_ext.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        COMPONENT development)
install(EXPORT isgqcoll NAMESPACE isgqcoll:: FILE isgqcollTargets.cmake DESTINATION ${package_dir} COMPONENT development)

configure_package_config_file(tools/cmake/isgqcollConfig.cmake.in isgqcollConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(isgqcollConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/isgqcollConfig.cmake ${PROJECT_BINARY_DIR}/isgqcollConfigVersion.cmake
        DESTINATION ${package_dir} COMPONENT development)

set(pc_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH pc_to_prefix /prefix/${pc_dir} /prefix)
configure_file(tools/cmake/isgqcoll.pc.in isgqcoll.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/isgqcoll.pc DESTINATION ${pc_dir} COMPONENT development)
