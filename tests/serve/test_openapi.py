"""The API's own description: complete, and no request that it allows makes the server fail."""

from __future__ import annotations

import pytest

from .conftest import Live, form, photo, png_of


def test_the_description_has_examples(live: Live) -> None:
    paths = live.ask("/openapi.json").json()["paths"]
    asked = {f"{method} {path}" for path, row in paths.items() for method in row}
    assert asked == {
        "get /v1/examples/{name}",
        "get /health",
        "get /ready",
        "get /metrics",
        "get /v1/model",
        "post /v1/segment",
        "post /setup",
        "get /versions",
        "post /predict",
        "post /webhook",
    }
    segment = paths["/v1/segment"]["post"]
    assert set(segment["requestBody"]["content"]) >= {"multipart/form-data", "image/jpeg"}
    assert set(segment["responses"]) >= {"200", "401", "413", "422", "503"}
    example = segment["responses"]["200"]["content"]["application/json"]["example"]
    answer = live.ask("/v1/segment", *form(png_of(photo(1)))).json()
    assert set(example) == set(answer)
    assert set(example["annotations"][0]) == set(answer["annotations"][0])
    model = paths["/v1/model"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    assert set(model) == set(live.ask("/v1/model").json())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_makes_it_fail(live: Live) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    # Not among them: that whatever the description allows is taken. It cannot say what bytes are a photo.
    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
    ]
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{live.port}/openapi.json")
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=60, deadline=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck)
        )
        def try_it(case) -> None:  # type: ignore[no-untyped-def]
            nonlocal asked
            asked += 1
            response = case.call()
            assert response.status_code < 500, (response.status_code, response.text)
            case.validate_response(response, checks=checks)

        try_it()
    assert asked >= 9 * 10
