# kvturbo estimate. Its figures of speed and loss are read from the pages that give them.
set(pages ${PROJECT_SOURCE_DIR}/docs/performance.md ${PROJECT_SOURCE_DIR}/docs/quality.md)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${pages})
file(READ ${PROJECT_SOURCE_DIR}/docs/performance.md KVTURBO_PERFORMANCE_PAGE)
file(READ ${PROJECT_SOURCE_DIR}/docs/quality.md KVTURBO_QUALITY_PAGE)
configure_file(measured_pages.cc.in measured_pages.cc @ONLY)
target_sources(kvturbo PRIVATE
  cache_sizes.cc
  command_estimate.cc
  measured_tables.cc
  ${CMAKE_CURRENT_BINARY_DIR}/measured_pages.cc
  model_shape.cc)
target_include_directories(kvturbo PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
