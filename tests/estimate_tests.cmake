# kvturbo estimate: its parts, then the command beside what the plug-in reports. Variables as in cli_tests.cmake; exit code 77: skipped.
# Included by tests/CMakeLists.txt where the program is built.
set(cli ${PROJECT_SOURCE_DIR}/cli)
add_executable(estimate_test ${CMAKE_CURRENT_LIST_DIR}/estimate_test.cc
  ${cli}/cache_sizes.cc ${cli}/gguf_header.cc ${cli}/measured_tables.cc ${cli}/model_shape.cc ${PROJECT_BINARY_DIR}/cli/measured_pages.cc)
target_include_directories(estimate_test PRIVATE ${cli})
target_link_libraries(estimate_test PRIVATE kvturbo_static kvturbo_warnings fmt::fmt GTest::gtest_main Threads::Threads)
add_test(NAME estimate COMMAND estimate_test)
add_test(NAME cli.estimate COMMAND ${CMAKE_CURRENT_LIST_DIR}/cli_estimate_test.sh)
set_tests_properties(cli.estimate PROPERTIES
  SKIP_RETURN_CODE 77
  TIMEOUT 300
  PROCESSORS 2
  ENVIRONMENT "TEST_KVTURBO=$<TARGET_FILE:kvturbo>;TEST_PLUGIN=$<TARGET_FILE_DIR:kvturbo>/libggml-kvturbo.so;TEST_HOST_BIN=${KVTURBO_HOST_BIN};TEST_MODEL=${KVTURBO_TEST_MODEL};TEST_SOURCE=${PROJECT_SOURCE_DIR}")
