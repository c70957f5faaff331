"""What a frame perceived, as ROS 2 messages. Nothing is read or sent here."""
