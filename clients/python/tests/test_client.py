"""Against a server in this process that answers from a script. Run: python3 -m unittest discover clients/python/tests"""

import email.utils
import json
import pathlib
import sys
import threading
import time
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from opinion_triage import Client, ItemRefused, Problem, Unreachable  # noqa: E402
from opinion_triage.client import _seconds  # noqa: E402


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.seen.append((self.path, dict(self.headers), body))
        step = self.server.script.pop(0) if self.server.script else (200, {}, None)
        if step == "hang up":
            self.close_connection = True
            return
        status, headers, reply = step
        if reply is None and body is not None:
            reply = {"results": [{"id": it["id"], "status": "ok", "text": it["text"]} for it in body["items"]]}
        content = json.dumps(reply or {}).encode()
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass


class ClientTest(unittest.TestCase):
    def setUp(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.script, self.server.seen = [], []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.waits = []
        self.client = self.make()

    def tearDown(self):
        self.client.close()
        self.server.shutdown()
        self.server.server_close()

    def make(self, **options):
        client = Client(f"http://127.0.0.1:{self.server.server_port}", **options)
        client._sleep = self.waits.append
        self.addCleanup(client.close)
        return client

    def test_results_come_in_order_over_several_requests(self):
        texts = [f"第{idx}条" for idx in range(10)]
        results = self.client.classify_many(texts, batch=4)
        self.assertEqual([it["text"] for it in results], texts)
        self.assertEqual([it["id"] for it in results], [str(idx) for idx in range(10)])
        self.assertEqual([len(it[2]["items"]) for it in self.server.seen], [4, 4, 2])

    def test_evidence_goes_in_small_batches(self):
        self.client.classify_many(["路灯"] * 9, include=["evidence"], deadline_ms=800, lane="bulk")
        self.assertEqual([len(it[2]["items"]) for it in self.server.seen], [8, 1])
        request = self.server.seen[0][2]
        self.assertEqual((request["include"], request["deadline_ms"], request["lane"]), (["evidence"], 800, "bulk"))

    def test_the_key_is_sent(self):
        self.make(key="triage_x").classify("路灯")
        self.assertEqual(self.server.seen[0][1]["authorization"], "Bearer triage_x")

    def test_retry_after_is_honoured(self):
        self.server.script = [(503, {"retry-after": "3"}, {}), (429, {"retry-after": "7"}, {})]
        self.assertEqual(self.client.classify("路灯")["status"], "ok")
        self.assertEqual(len(self.server.seen), 3)
        self.assertTrue(3 <= self.waits[0] <= 3.25 and 7 <= self.waits[1] <= 7.25, self.waits)

    def test_all_attempts_of_a_request_have_one_key_and_each_request_its_own(self):
        self.server.script = ["hang up", (503, {"retry-after": "1"}, {})]
        client = self.make(idempotent=True)
        client.classify_many(["路灯"] * 2, batch=1)
        client.model()
        keys = [it[1].get("idempotency-key") for it in self.server.seen]
        self.assertEqual((len(keys), len(set(keys[:3]))), (5, 1))
        self.assertTrue(keys[0] and keys[3] and keys[0] != keys[3])
        self.client.classify("路灯")
        self.assertEqual([keys[4], self.server.seen[-1][1].get("idempotency-key")], [None, None])

    def test_patience_has_an_end(self):
        self.server.script = [(503, {"retry-after": "900"}, {})] * 3
        with self.assertRaises(Problem) as raised:
            self.make(attempts=3, patience=5.0).classify("路灯")
        self.assertEqual(raised.exception.status, 503)
        self.assertEqual(self.waits, [5.0, 5.0])

    def test_what_does_not_pass_is_not_tried_again(self):
        for status, code in [(400, "invalid_json"), (401, "unauthorized"), (422, "no_items"), (504, "deadline_exceeded")]:
            self.server.seen.clear()
            self.server.script = [(status, {}, {"code": code, "detail": "…"})]
            with self.assertRaises(Problem) as raised:
                self.client.classify("路灯")
            self.assertEqual((raised.exception.status, raised.exception.code), (status, code))
            self.assertEqual(len(self.server.seen), 1)

    def test_a_broken_connection_is_tried_again(self):
        self.server.script = ["hang up", "hang up"]
        self.assertEqual(self.client.classify("路灯")["status"], "ok")
        self.assertEqual(len(self.waits), 2)
        self.server.script = ["hang up"] * 2
        with self.assertRaises(Unreachable):
            self.make(attempts=2).classify("路灯")

    def test_a_refused_item_raises_and_its_text_is_in_no_message(self):
        error = {"code": "empty_text", "detail": "the text is empty", "pointer": "/items/0/text"}
        self.server.script = [(200, {}, {"results": [{"id": "0", "status": "error", "error": error}]})]
        with self.assertRaises(ItemRefused) as raised:
            self.client.classify("金丝雀")
        self.assertEqual(raised.exception.code, "empty_text")
        self.assertNotIn("金丝雀", str(raised.exception))

    def test_one_connection_is_enough(self):
        for _ in range(3):
            self.client.classify("路灯")
        ports = {self.client._connection.sock.getsockname()[1]}
        self.client.classify("路灯")
        self.assertEqual(ports, {self.client._connection.sock.getsockname()[1]})

    def test_readiness(self):
        self.assertTrue(self.client.is_ready())
        self.server.script = [(503, {}, {"status": "draining"})]
        self.assertFalse(self.client.is_ready())
        self.server.script = ["hang up"]
        self.assertFalse(self.client.is_ready())

    def test_retry_after_is_a_number_or_a_date(self):
        self.assertEqual(_seconds("2"), 2.0)
        self.assertIsNone(_seconds(None))
        self.assertIsNone(_seconds("soon"))
        self.assertEqual(_seconds("-5"), 0.0)
        self.assertAlmostEqual(_seconds(email.utils.formatdate(time.time() + 60, usegmt=True)), 60, delta=2)

    def test_a_wrong_address_is_named(self):
        for url in ("localhost:8080", "ftp://a", ""):
            with self.assertRaises(ValueError):
                Client(url)


if __name__ == "__main__":
    unittest.main()
