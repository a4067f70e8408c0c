# kvturbo eval: its parts without a host, then the command on a tiny run. Variables as in cli_tests.cmake; exit code 77: skipped.
# Included by tests/CMakeLists.txt where the program is built.
set(cli ${PROJECT_SOURCE_DIR}/cli)
add_executable(eval_test ${CMAKE_CURRENT_LIST_DIR}/eval_test.cc
  ${cli}/cli_options.cc ${cli}/eval_settings.cc ${cli}/perplexity_output.cc ${cli}/svg_chart.cc)
target_include_directories(eval_test PRIVATE ${cli})
find_package(CLI11 REQUIRED)
find_package(fmt REQUIRED)
target_link_libraries(eval_test PRIVATE kvturbo_static kvturbo_warnings CLI11::CLI11 kvturbo_fmt GTest::gtest_main Threads::Threads)
add_test(NAME eval COMMAND eval_test)
add_test(NAME cli.eval COMMAND ${CMAKE_CURRENT_LIST_DIR}/cli_eval_test.sh)
set_tests_properties(cli.eval PROPERTIES
  SKIP_RETURN_CODE 77
  TIMEOUT 600
  PROCESSORS 2
  ENVIRONMENT "TEST_KVTURBO=$<TARGET_FILE:kvturbo>;TEST_PLUGIN=$<TARGET_FILE_DIR:kvturbo>/libggml-kvturbo.so;TEST_HOST_BIN=${KVTURBO_HOST_BIN};TEST_MODEL=${KVTURBO_TEST_MODEL};TEST_SOURCE=${PROJECT_SOURCE_DIR}")
