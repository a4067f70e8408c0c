# Tests of the program: each is a script with expected output and exit code. Exit code 77: skipped, for lack of host or model.
foreach(name run bad_input models doctor serve readme)
  add_test(NAME cli.${name} COMMAND ${CMAKE_CURRENT_LIST_DIR}/cli_${name}_test.sh)
  set_tests_properties(cli.${name} PROPERTIES
    SKIP_RETURN_CODE 77
    TIMEOUT 300
    PROCESSORS 2
    ENVIRONMENT "TEST_KVTURBO=$<TARGET_FILE:kvturbo>;TEST_PLUGIN=$<TARGET_FILE_DIR:kvturbo>/libggml-kvturbo.so;TEST_HOST_BIN=${KVTURBO_HOST_BIN};TEST_MODEL=${KVTURBO_TEST_MODEL};TEST_SOURCE=${PROJECT_SOURCE_DIR}")
endforeach()
# It builds in the build folder and uses the user's cache: alone; and it runs ./demo, which may take long on a busy machine.
set_tests_properties(cli.readme PROPERTIES RUN_SERIAL TRUE TIMEOUT 600)

# The pages: messages, links, variables, flags and figures in them exist.
find_package(Python3 COMPONENTS Interpreter)
if(Python3_FOUND)
  add_test(NAME docs COMMAND Python3::Interpreter ${CMAKE_CURRENT_LIST_DIR}/docs_test.py $<TARGET_FILE:kvturbo>)
endif()

add_executable(doctor_test ${CMAKE_CURRENT_LIST_DIR}/doctor_test.cc ${PROJECT_SOURCE_DIR}/cli/self_test.cc ${PROJECT_SOURCE_DIR}/cli/machine_info.cc)
target_include_directories(doctor_test PRIVATE ${PROJECT_SOURCE_DIR}/cli ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(doctor_test PRIVATE kvturbo_static kvturbo_warnings fmt::fmt GTest::gtest_main Threads::Threads)
add_test(NAME doctor COMMAND doctor_test)
