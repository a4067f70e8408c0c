# kvturbo pack, unpack: the container, then the commands on a slot that a host saved. Included by tests/CMakeLists.txt where the program is built.
set(cli ${PROJECT_SOURCE_DIR}/cli)
add_executable(state_container_test ${CMAKE_CURRENT_LIST_DIR}/state_container_test.cc ${cli}/slot_file.cc ${cli}/state_container.cc)
target_include_directories(state_container_test PRIVATE ${cli} ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(state_container_test PRIVATE kvturbo_static kvturbo_warnings GTest::gtest_main Threads::Threads)
add_test(NAME state_container COMMAND state_container_test)
add_test(NAME cli.pack COMMAND ${CMAKE_CURRENT_LIST_DIR}/cli_pack_test.sh)
set_tests_properties(cli.pack PROPERTIES
  SKIP_RETURN_CODE 77
  TIMEOUT 300
  PROCESSORS 2
  ENVIRONMENT "TEST_KVTURBO=$<TARGET_FILE:kvturbo>;TEST_PLUGIN=$<TARGET_FILE_DIR:kvturbo>/libggml-kvturbo.so;TEST_HOST_BIN=${KVTURBO_HOST_BIN};TEST_MODEL=${KVTURBO_TEST_MODEL};TEST_SOURCE=${PROJECT_SOURCE_DIR}")
