# The OpenVINO backend: 2025.0 or newer, from its packages or the Python wheel.
find_package(OpenVINO QUIET COMPONENTS Runtime)
if(NOT OpenVINO_FOUND)
  message(STATUS "Backend openvino: no, set OpenVINO_DIR to the folder of OpenVINOConfig.cmake")
  return()
endif()
if(OpenVINO_VERSION_MAJOR LESS 2025)  # its packages say that they serve their own year alone
  message(STATUS "Backend openvino: no, ${OpenVINO_DIR} is older than 2025.0")
  return()
endif()
message(STATUS "Backend openvino: yes (${OpenVINO_DIR})")
target_sources(tgate PRIVATE src/backends/openvino.cpp src/backends/openvino_model.cpp)
# Not the target's own flags: its headers do not pass our warnings.
get_target_property(openvino_headers openvino::runtime INTERFACE_INCLUDE_DIRECTORIES)
target_include_directories(tgate SYSTEM PRIVATE ${openvino_headers})
# Its macros would write the folder of its headers into the library.
target_compile_options(tgate PRIVATE "-fmacro-prefix-map=$<JOIN:${openvino_headers},=openvino;-fmacro-prefix-map=>=openvino")
target_link_libraries(tgate PRIVATE openvino::runtime)
target_compile_definitions(tgate PRIVATE TGATE_WITH_OPENVINO)
set(TGATE_WITH_OPENVINO ON)

# From a Python wheel or an archive: what the backend loads goes with the program.
get_target_property(library openvino::runtime IMPORTED_LOCATION_RELEASE)
if(TGATE_EXAMPLE AND TGATE_INSTALL_LIBRARIES AND library AND NOT library MATCHES "^/(usr/)?lib")
  cmake_path(GET library PARENT_PATH folder)
  file(GLOB libraries ${folder}/libopenvino_onnx_frontend.so* ${folder}/libopenvino_intel_cpu_plugin.so
    ${folder}/libtbb*.so.* ${folder}/libhwloc.so.* ${folder}/../../../3rdparty/tbb/lib/lib*.so.*)
  install(FILES ${libraries} DESTINATION ${TGATE_LIBRARIES})
  install(FILES $<TARGET_FILE:openvino::runtime> DESTINATION ${TGATE_LIBRARIES}
    RENAME $<TARGET_SONAME_FILE_NAME:openvino::runtime>)
endif()
