# SPDX-License-Identifier: Apache-2.0
# Dependencies. All are optional: without one, the file that needs it is not compiled and its row is missing from a table.

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(PkgConfig)

# isgq_dependency(NAME package purpose): the option ISGQ_WITH_NAME = AUTO, ON (an error if it is absent) or OFF. Sets ISGQ_NAME to
# the version or OFF, and makes the target PkgConfig::ISGQ_NAME.
macro(isgq_dependency name package purpose)
    set(ISGQ_WITH_${name} AUTO CACHE STRING "${purpose}: AUTO, ON or OFF")
    set_property(CACHE ISGQ_WITH_${name} PROPERTY STRINGS AUTO ON OFF)
    set(ISGQ_${name} OFF)
    if(ISGQ_WITH_${name} AND PKG_CONFIG_FOUND)
        pkg_check_modules(ISGQ_${name} QUIET IMPORTED_TARGET ${package})
        if(ISGQ_${name}_FOUND)
            set(ISGQ_${name} ${ISGQ_${name}_VERSION})
        endif()
    elseif(ISGQ_WITH_${name} STREQUAL "AUTO")
        message(WARNING "pkg-config is missing, so ${package} cannot be found (ISGQ_WITH_${name})")
    endif()
    if(ISGQ_WITH_${name} STREQUAL "ON" AND NOT ISGQ_${name})
        message(FATAL_ERROR "ISGQ_WITH_${name}=ON, but pkg-config finds no ${package}")
    endif()
    list(APPEND ISGQ_DEPENDENCIES ${name})
    set(ISGQ_${name}_PURPOSE "${purpose}")
endmacro()

isgq_dependency(UCX ucx "transport between hosts")
isgq_dependency(HWLOC hwloc "topology of the machine")
isgq_dependency(BLAS openblas "products of factors, isgq_train")
isgq_dependency(SODIUM libsodium "authentication of the rendezvous")
isgq_dependency(ZLIB zlib "isgq_train reads .gz files")
