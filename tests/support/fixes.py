"""Messages of positions."""

import numpy as np
from make_log import TYPES, header, make
from recordings import Sent


def message(topic: str, stamp: int, content: object) -> Sent:
    type_name = content.__msgtype__  # type: ignore[attr-defined]
    return Sent(topic, type_name, stamp, bytes(TYPES.serialize_cdr(content, type_name)))


def fix(stamp: int, latitude: float, longitude: float, status: int = 0) -> Sent:
    content = make(
        "sensor_msgs/msg/NavSatFix", header=header(stamp, "gps"), latitude=latitude, longitude=longitude, altitude=0.0,
        status=make("sensor_msgs/msg/NavSatStatus", status=status, service=1), position_covariance=np.zeros(9),
        position_covariance_type=0,
    )  # fmt: skip
    return message("/gps", stamp, content)
