# The ONNX Runtime backend needs one header to build; the library is loaded when a program runs.
set(TGATE_ONNXRUNTIME_LIBRARY "" CACHE FILEPATH
  "libonnxruntime.so of the build tree's programs, which is installed with tgate_generate")
option(TGATE_ONNXRUNTIME_DOWNLOAD "Download ONNX Runtime's header where it is not found" ON)

find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h
  PATH_SUFFIXES onnxruntime onnxruntime/core/session
  DOC "Folder of onnxruntime_c_api.h, version 1.21 or newer")
if(NOT ONNXRUNTIME_INCLUDE_DIR AND TGATE_ONNXRUNTIME_DOWNLOAD)
  set(url https://raw.githubusercontent.com/microsoft/onnxruntime/v1.21.0/include/onnxruntime/core/session/onnxruntime_c_api.h)
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/onnxruntime-1.21.0)
  # Without EXPECTED_HASH, which ends the configuration where there is no network.
  file(DOWNLOAD ${url} ${folder}/onnxruntime_c_api.h TIMEOUT 30 STATUS status)
  list(GET status 0 failed)
  if(NOT failed)
    file(SHA256 ${folder}/onnxruntime_c_api.h sha256)
    if(NOT sha256 STREQUAL 7783e9664bdb0b1b36145b5c8587dd1bc9a399aa000edf2e3dd03003cafc6882)
      set(status "its sha256 is ${sha256}")
      set(failed TRUE)
    endif()
  endif()
  if(failed)
    file(REMOVE ${folder}/onnxruntime_c_api.h)
    message(STATUS "ONNX Runtime's header could not be downloaded: ${status}")
  else()
    set(ONNXRUNTIME_INCLUDE_DIR ${folder})
  endif()
endif()

if(NOT ONNXRUNTIME_INCLUDE_DIR)
  message(STATUS "Backend onnxruntime: no, onnxruntime_c_api.h was not found: "
    "set ONNXRUNTIME_INCLUDE_DIR, or install libonnxruntime-dev (Debian 13)")
  return()
endif()
message(STATUS "Backend onnxruntime: yes (${ONNXRUNTIME_INCLUDE_DIR})")
target_sources(tgate PRIVATE src/backends/onnxruntime.cpp)
target_include_directories(tgate SYSTEM PRIVATE ${ONNXRUNTIME_INCLUDE_DIR})
target_compile_definitions(tgate PRIVATE TGATE_WITH_ONNXRUNTIME)
set(TGATE_WITH_ONNXRUNTIME ON)

# Programs ask for it by the name that it has everywhere, in their own folders of libraries first.
if(EXISTS "${TGATE_ONNXRUNTIME_LIBRARY}")
  file(REAL_PATH "${TGATE_ONNXRUNTIME_LIBRARY}" library)
  file(MAKE_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/libraries)
  file(CREATE_LINK "${library}" ${CMAKE_CURRENT_BINARY_DIR}/libraries/libonnxruntime.so.1 SYMBOLIC)
  set(TGATE_BUILD_RPATH ${CMAKE_CURRENT_BINARY_DIR}/libraries CACHE INTERNAL
    "Folder of libraries for programs of the build tree")
  if(TGATE_EXAMPLE AND TGATE_INSTALL_LIBRARIES)
    install(FILES "${library}" DESTINATION ${TGATE_LIBRARIES} RENAME libonnxruntime.so.1)
  endif()
endif()
