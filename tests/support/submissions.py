"""A box as a nuScenes submission has it."""

BOX = {
    "sample_token": "",
    "translation": [0, 0, 0],
    "size": [1, 1, 1],
    "rotation": [1, 0, 0, 0],
    "velocity": [0, 0],
    "detection_name": "car",
    "detection_score": 0.5,
    "attribute_name": "",
}
