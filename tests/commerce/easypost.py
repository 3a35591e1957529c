"""A server that speaks EasyPost's protocol (REST, version 2) as its documentation describes it, and keeps books."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "EZTK-test-key"
LABEL = b"%PDF-1.4 the carrier's own label"


@dataclass
class Books:
    url: str = ""
    shipments: dict[str, dict[str, Any]] = field(default_factory=dict)
    charges: int = 0
    refunds: int = 0
    lose_answers: list[str] = field(default_factory=list)
    """Paths ("/buy") whose next answer is lost on its way, after everything was done."""
    requests: list[str] = field(default_factory=list)


@contextmanager
def easypost() -> Iterator[Books]:
    books = Books()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Nobody reads it."""

        def do_GET(self) -> None:
            self.serve("GET")

        def do_POST(self) -> None:
            self.serve("POST")

        def serve(self, verb: str) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            books.requests.append(f"{verb} {self.path}")
            if self.path.startswith("/labels/"):
                self.answer(200, LABEL)
                return
            expected = "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()
            if self.headers.get("authorization") != expected:
                self.refuse(401, "APIKEY.INACTIVE", "This api key is no longer active.")
                return
            self.dispatch(verb, [part for part in self.path.split("/") if part], body)

        def dispatch(self, verb: str, parts: list[str], body: dict[str, Any]) -> None:
            if (verb, parts) == ("POST", ["shipments"]):
                self.create(body["shipment"])
                return
            shipment = books.shipments.get(parts[1])
            if shipment is None:
                self.refuse(404, "NOT_FOUND", "The requested resource could not be found.")
            elif parts[2:] == ["buy"]:
                self.buy(shipment, body)
            elif parts[2:] == ["refund"]:
                books.refunds += 1
                shipment["refund_status"] = "submitted"
                self.answer(200, shipment)
            else:
                self.answer(200, shipment)

        def create(self, asked: dict[str, Any]) -> None:
            if not asked["to_address"].get("zip"):
                self.refuse(422, "ADDRESS.VERIFY.FAILURE", "Unable to verify address.")
                return
            number = f"shp_{len(books.shipments) + 1:032x}"
            rates = [
                {"id": f"rate_{at}", "service": service, "carrier": carrier, "rate": rate, "currency": "USD"}
                for at, (carrier, service, rate) in enumerate(
                    [("USPS", "Priority", "7.58"), ("UPS", "Ground", "9.10"), ("USPS", "Ground", "6.07")]
                )
            ]
            books.shipments[number] = {"id": number, **asked, "rates": rates, "postage_label": None}
            self.answer(201, books.shipments[number])

        def buy(self, shipment: dict[str, Any], body: dict[str, Any]) -> None:
            if shipment["postage_label"]:
                self.refuse(422, "SHIPMENT.POSTAGE.EXISTS", "Postage already exists for this shipment.")
                return
            books.charges += 1
            shipment["selected_rate"] = next(rate for rate in shipment["rates"] if rate["id"] == body["rate"]["id"])
            shipment["tracking_code"] = f"EZ{books.charges:010}"
            shipment["postage_label"] = {"label_url": f"{books.url}/labels/{shipment['id']}.pdf"}
            self.answer(200, shipment)

        def refuse(self, status: int, code: str, message: str) -> None:
            self.answer(status, {"error": {"code": code, "message": message, "errors": []}})

        def answer(self, status: int, body: dict[str, Any] | bytes) -> None:
            lost = next((end for end in books.lose_answers if self.path.endswith(end)), None)
            if lost is not None:
                books.lose_answers.remove(lost)
                self.close_connection = True
                return
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    books.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield books
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
