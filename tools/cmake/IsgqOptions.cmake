# SPDX-License-Identifier: Apache-2.0
# What a user may choose (the dependencies' options are in IsgqDependencies.cmake), and where results go.

option(ISGQ_WERROR "Warnings are errors" OFF)
option(ISGQ_ASSERT "Check the library's own assumptions at run time" OFF)
option(ISGQ_SIMULATED_CUDA "Tests of the code for GPUs on a simulated one" ON)
set(ISGQ_SANITIZE "" CACHE STRING "Sanitizers, separated by commas: address,undefined or thread")

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release, RelWithDebInfo or MinSizeRel" FORCE)
endif()

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)
set(ISGQ_MODULE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib/isgqcoll)
