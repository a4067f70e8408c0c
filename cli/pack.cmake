# kvturbo pack, unpack. Included by cli/CMakeLists.txt. Rows are made of the library's parts.
target_sources(kvturbo PRIVATE command_pack.cc slot_file.cc state_container.cc whole_file.cc)
target_include_directories(kvturbo PRIVATE ${PROJECT_SOURCE_DIR}/src)
