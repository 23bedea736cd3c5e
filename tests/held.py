"""How many frames a generator holds while it goes through a video."""

import weakref


class Picture:
    """An object whose life can be watched."""


def count_held(cut, num_frames):
    """The most frames that are alive while `cut` makes pieces of them, and how many are left afterwards."""
    alive = weakref.WeakSet()
    num_held = [0]

    def pictures():
        for _ in range(num_frames):
            num_held.append(len(alive))
            picture = Picture()
            alive.add(picture)
            yield picture
            del picture

    for piece in cut(pictures()):
        num_held.append(len(alive))
        del piece
    return max(num_held), len(alive)
