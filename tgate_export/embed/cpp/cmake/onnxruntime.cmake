# The ONNX Runtime backend needs one header to build; the library is loaded when a program runs.
set(TGATE_ONNXRUNTIME_LIBRARY "" CACHE FILEPATH
  "libonnxruntime.so that programs load unless they, or TGATE_ONNXRUNTIME, say another")
option(TGATE_ONNXRUNTIME_DOWNLOAD "Download ONNX Runtime's header where it is not found" ON)

find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h
  PATH_SUFFIXES onnxruntime onnxruntime/core/session
  DOC "Folder of onnxruntime_c_api.h, version 1.21 or newer")
if(NOT ONNXRUNTIME_INCLUDE_DIR AND TGATE_ONNXRUNTIME_DOWNLOAD)
  set(url https://raw.githubusercontent.com/microsoft/onnxruntime/v1.21.0/include/onnxruntime/core/session/onnxruntime_c_api.h)
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/onnxruntime-1.21.0)
  file(DOWNLOAD ${url} ${folder}/onnxruntime_c_api.h TIMEOUT 60 STATUS status
    EXPECTED_HASH SHA256=7783e9664bdb0b1b36145b5c8587dd1bc9a399aa000edf2e3dd03003cafc6882)
  list(GET status 0 failed)
  if(failed)
    file(REMOVE ${folder}/onnxruntime_c_api.h)
    message(STATUS "ONNX Runtime's header could not be downloaded: ${status}")
  else()
    set(ONNXRUNTIME_INCLUDE_DIR ${folder})
  endif()
endif()

if(ONNXRUNTIME_INCLUDE_DIR)
  message(STATUS "Backend onnxruntime: yes (${ONNXRUNTIME_INCLUDE_DIR})")
  target_sources(tgate PRIVATE src/backends/onnxruntime.cpp)
  target_include_directories(tgate SYSTEM PRIVATE ${ONNXRUNTIME_INCLUDE_DIR})
  target_compile_definitions(tgate PRIVATE TGATE_WITH_ONNXRUNTIME
    TGATE_ONNXRUNTIME_LIBRARY="${TGATE_ONNXRUNTIME_LIBRARY}")
else()
  message(STATUS "Backend onnxruntime: no, onnxruntime_c_api.h was not found: "
    "set ONNXRUNTIME_INCLUDE_DIR, or install libonnxruntime-dev (Debian 13)")
endif()
