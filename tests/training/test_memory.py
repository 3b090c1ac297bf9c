"""What the meter makes of what a device tells. The figures of a real GPU are in ``tests/test_gpu.py``."""

from types import SimpleNamespace

from geopol_tkg.training.memory import MemoryMeter

MB = 1 << 20


def test_an_epochs_high_is_the_allocators_peak_where_the_epoch_raised_it():
    told = {}
    meter = MemoryMeter(SimpleNamespace(platform="gpu", memory_stats=lambda: told))

    def sample(in_use, peak):
        told.update(bytes_in_use=in_use * MB, peak_bytes_in_use=peak * MB)
        meter.sample()
        return meter.used_mb, meter.epoch_high_mb, meter.run_peak_mb

    meter.new_epoch()
    assert sample(10, 10) == (10, 10, 10)
    assert sample(11, 70) == (11, 70, 70)  # a step has come and gone
    meter.new_epoch()
    assert meter.epoch_high_mb == 70
    assert sample(12, 70) == (12, 12, 70)
    assert sample(11, 70) == (11, 12, 70)
    assert sample(11, 90) == (11, 90, 90)
    assert sample(11, 90) == (11, 90, 90)
