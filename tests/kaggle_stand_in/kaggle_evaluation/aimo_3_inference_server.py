"""What a notebook imports."""

import aimo_3_gateway
import templates


class AIMO3InferenceServer(templates.InferenceServer):
    def _get_gateway_for_test(self, data_paths):
        return aimo_3_gateway.AIMO3Gateway(data_paths)
