# kvturbo bench on tiny shapes: what it prints, not how fast it is. Variables as in cli_tests.cmake; exit code 77: skipped.
# Included by tests/CMakeLists.txt where the program is built.
add_test(NAME cli.bench COMMAND ${CMAKE_CURRENT_LIST_DIR}/bench_test.sh)
set_tests_properties(cli.bench PROPERTIES
  SKIP_RETURN_CODE 77
  TIMEOUT 300
  PROCESSORS 2
  ENVIRONMENT "TEST_KVTURBO=$<TARGET_FILE:kvturbo>;TEST_PLUGIN=$<TARGET_FILE_DIR:kvturbo>/libggml-kvturbo.so;TEST_HOST_BIN=${KVTURBO_HOST_BIN};TEST_MODEL=${KVTURBO_TEST_MODEL};TEST_SOURCE=${PROJECT_SOURCE_DIR}")
