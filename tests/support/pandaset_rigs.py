"""PandaSet's car with some of its LiDARs."""

from perception.datasets.pandaset import LIDARS
from perception.rig import Rig, load_rig


def rig_of(*lidars: int) -> Rig:
    """With the LiDARs of these numbers, in this order."""
    rig = load_rig("pandaset")
    named = {each.name: each for each in rig.lidars}
    return rig.model_copy(update={"lidars": tuple(named[LIDARS[i]] for i in lidars)})


SPINNING = rig_of(0)
