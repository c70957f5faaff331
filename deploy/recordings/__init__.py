"""Recorded drives to replay: scenes of a data set, MCAP files and rosbag2 recordings."""
