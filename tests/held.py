"""Counts how many frames a generator holds while it goes through a video."""

import weakref


class Image:
    """An object that can be referenced weakly."""


def count_held(cut, num_frames):
    """Return the most frames that are alive while `cut` makes pieces of them, and how many are alive afterwards."""
    alive = weakref.WeakSet()
    num_held = [0]

    def images():
        for _ in range(num_frames):
            num_held.append(len(alive))
            image = Image()
            alive.add(image)
            yield image
            del image

    for piece in cut(images()):
        num_held.append(len(alive))
        del piece
    return max(num_held), len(alive)
