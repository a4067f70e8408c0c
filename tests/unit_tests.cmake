# Unit tests. Each binary runs once for each kernel table; on a machine or build without it the test skips.
# Included by tests/CMakeLists.txt, which provides GTest, kvturbo_static and kvturbo_warnings.
set(KVT_TEST_ISAS scalar avx2 avxvnni avx512 neon)
find_package(Threads REQUIRED)

foreach(name golden distortion attention exact_rows guard_page api engine_encode integer_scores state_row)
  add_executable(${name}_test ${CMAKE_CURRENT_LIST_DIR}/${name}_test.cc)
  target_compile_features(${name}_test PRIVATE cxx_std_20)
  if(name MATCHES "engine_encode|integer_scores|state_row")  # internal interfaces
    target_include_directories(${name}_test PRIVATE ${PROJECT_SOURCE_DIR}/src)
  endif()
  target_compile_definitions(${name}_test PRIVATE KVT_TEST_DATA="${CMAKE_CURRENT_LIST_DIR}")
  target_link_libraries(${name}_test PRIVATE kvturbo_static kvturbo_warnings GTest::gtest_main Threads::Threads)
  foreach(isa ${KVT_TEST_ISAS})
    add_test(NAME ${name}.${isa} COMMAND ${name}_test)
    set_tests_properties(
      ${name}.${isa}
      PROPERTIES ENVIRONMENT KVTURBO_ISA=${isa}
                 TIMEOUT 300
                 SKIP_REGULAR_EXPRESSION "KVTURBO_ISA=[a-z0-9]+ is not available here")
  endforeach()
endforeach()

# The golden files on disk are what the script makes.
find_package(Python3 COMPONENTS Interpreter)
if(Python3_FOUND)
  add_test(NAME golden.oracle COMMAND Python3::Interpreter ${CMAKE_CURRENT_LIST_DIR}/../scripts/make_golden.py --check)
endif()
