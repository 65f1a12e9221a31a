# Compiler settings and the few functions with which every folder declares its targets.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")
set(CMAKE_INSTALL_RPATH "$ORIGIN/../lib")

find_package(Threads REQUIRED)
find_package(absl REQUIRED)

if(TIDAL_SANITIZE)
  add_compile_options(-fsanitize=${TIDAL_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${TIDAL_SANITIZE})
endif()

# Warnings for our own code only; generated code does not use it.
add_library(tidal_warnings INTERFACE)
target_compile_options(tidal_warnings INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wconversion
                       -Wno-sign-conversion -Wnon-virtual-dtor -Woverloaded-virtual -Werror)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # A false positive on std::string (GCC bug 105651).
  target_compile_options(tidal_warnings INTERFACE -Wno-restrict)
endif()
if(TIDAL_SANITIZE AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC 12 reports false positives of these two once sanitizers rewrite the code.
  target_compile_options(tidal_warnings INTERFACE -Wno-maybe-uninitialized -Wno-stringop-overflow)
  if(TIDAL_SANITIZE MATCHES "thread")
    # Abseil's flags use a fence that ThreadSanitizer does not know.
    target_compile_options(tidal_warnings INTERFACE -Wno-tsan)
  endif()
endif()

# tidal_library(<name> SOURCES ... LINK ...): a static library of one folder. LINK is public: it is
# the folder's row in the table of who may include whom.
function(tidal_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PUBLIC ${ARG_LINK} PRIVATE tidal_warnings)
endfunction()

# tidal_program(<name> SOURCES ... LINK ...): an installed executable.
function(tidal_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} tidal_warnings)
  install(TARGETS ${name} RUNTIME DESTINATION bin)
endfunction()

add_custom_target(concurrency_tests)

# tidal_test(<name> SOURCES ... LINK ... [LABELS ...] [TIMEOUT seconds] [PREFIX text]): a GoogleTest
# program; each of its cases is one CTest test, with PREFIX before its name. The label `concurrency`
# marks what also runs under ThreadSanitizer, and is built by the target concurrency_tests.
function(tidal_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT;PREFIX" "SOURCES;LINK;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_compile_definitions(${name} PRIVATE TIDAL_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE ${ARG_LINK} GTest::gmock GTest::gtest_main tidal_warnings)
  set(properties TIMEOUT ${ARG_TIMEOUT})
  if(ARG_LABELS)
    list(APPEND properties LABELS "${ARG_LABELS}")
    if("concurrency" IN_LIST ARG_LABELS)
      add_dependencies(concurrency_tests ${name})
    endif()
  endif()
  if(TIDAL_SANITIZE MATCHES "thread")
    list(APPEND properties ENVIRONMENT
         "TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/tsan_suppressions.txt")
  endif()
  gtest_discover_tests(${name} TEST_PREFIX "${ARG_PREFIX}" DISCOVERY_TIMEOUT 60
                       PROPERTIES ${properties})
endfunction()
