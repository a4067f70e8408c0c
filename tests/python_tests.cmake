# The Python bindings on the library of this build. Exit code 77: skipped, for lack of numpy; then scripts/check_wheel.sh runs them.
find_package(Python3 COMPONENTS Interpreter)
if(Python3_FOUND)
  add_test(NAME python.bindings COMMAND Python3::Interpreter ${PROJECT_SOURCE_DIR}/python/tests/test_bindings.py)
  set_tests_properties(python.bindings PROPERTIES
    SKIP_RETURN_CODE 77
    ENVIRONMENT "PYTHONPATH=${PROJECT_SOURCE_DIR}/python;PYTHONDONTWRITEBYTECODE=1;LD_LIBRARY_PATH=$<TARGET_FILE_DIR:kvturbo_shared>")
endif()
