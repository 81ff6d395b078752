"""Clips in and out of files: the one place where the trainer touches a video codec.

A clip that cannot be trained on as asked is refused here, with its name and what to do: it is never padded, looped or
decoded in part. What is read is what a viewer would see: upright, with square pixels, deinterlaced, in the light of an
ordinary display, each frame at its time.
"""

from pgdpo.video.info import MAX_SIDE, VideoInfo
from pgdpo.video.listen import read_sound
from pgdpo.video.read import probe_video, read_frames, read_video, verify_video
from pgdpo.video.shape import fit_picture
from pgdpo.video.sound import Sound, SoundFormat, SoundInfo
from pgdpo.video.write import write_video

__all__ = [
    "MAX_SIDE",
    "Sound",
    "SoundFormat",
    "SoundInfo",
    "VideoInfo",
    "fit_picture",
    "probe_video",
    "read_frames",
    "read_sound",
    "read_video",
    "verify_video",
    "write_video",
]
