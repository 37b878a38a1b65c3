from tests.fuse.fake_gpu import launched as launched
