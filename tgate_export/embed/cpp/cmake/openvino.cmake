message(STATUS "Backend openvino: no")
