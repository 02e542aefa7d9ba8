"""The base of an inference server."""

import abc
import os
import time

import base_gateway
import relay

_IMPORTED = time.time()


class InferenceServer(abc.ABC):
    """Takes its port in the constructor, serves later."""

    def __init__(self, *functions):
        self.server = relay.define_server(*functions)
        self.client = None
        self.gateway = None

    def serve(self):
        self.server.start()
        if os.getenv("KAGGLE_IS_COMPETITION_RERUN") is not None:
            self.server.wait_for_termination()

    def run_local_gateway(self, data_paths=None, file_share_dir=None):
        base_gateway.warn_if_late(time.time() - _IMPORTED)
        self.server.start()
        try:
            self.gateway = self._get_gateway_for_test(data_paths)
            self.gateway.run()
        finally:
            self.server.stop(0)

    @abc.abstractmethod
    def _get_gateway_for_test(self, data_paths): ...
