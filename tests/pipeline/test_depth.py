import numpy as np

from pipeline.depth import levels, unit, widened

EVERY8, EVERY16 = np.arange(256, dtype=np.uint8), np.arange(65536, dtype=np.uint16)


def test_an_image_of_8_bits_is_the_same_numbers_in_16():
    wide = widened(EVERY8, 16)
    assert wide.dtype == np.uint16
    assert (wide[0], wide[-1]) == (0, 65535)
    assert unit(wide).tobytes() == unit(EVERY8).tobytes()
    assert widened(EVERY8, 8) is EVERY8
    assert widened(EVERY16, 16) is EVERY16


def test_every_level_survives_the_way_to_numbers_and_back():
    for each in (EVERY8, EVERY16):
        numbers = unit(each)
        assert numbers.dtype == np.float32
        assert (numbers.min(), numbers.max()) == (0, 1)
        assert (levels(numbers, each.dtype) == each).all()
    assert (levels(unit(EVERY16[::257]), np.uint8) == EVERY8).all()


def test_numbers_beyond_black_and_white_become_these():
    assert levels(np.array([-0.2, 0.5, 1.7]), np.uint8).tolist() == [0, 128, 255]
    assert levels(np.array([-0.2, 0.5, 1.7], np.float32), np.uint16).tolist() == [0, 32768, 65535]
