// Topics and pixels of the cameras' pictures.
#pragma once

#include <opencv2/core.hpp>
#include <stdexcept>
#include <string>

namespace tessera_ros {

// Where pictures of a topic come by an `image_transport`: as image_transport's own subscribers have it.
inline std::string picture_topic(const std::string &topic, const std::string &transport) {
    if (transport == "raw") return topic;
    if (transport == "compressed") return topic + "/compressed";
    throw std::invalid_argument("image_transport: is '" + transport + "', neither raw nor compressed");
}

// The pixels without gaps between rows, in the same memory if there are none.
inline cv::Mat packed(const cv::Mat &rgb) {
    if (rgb.empty() || rgb.type() != CV_8UC3) throw std::invalid_argument("a picture has no pixels of 3 x 8 bits");
    return rgb.isContinuous() ? rgb : rgb.clone();
}

}  // namespace tessera_ros
