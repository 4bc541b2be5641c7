#!/usr/bin/env python3
"""Notes as durable servers: POST adds the body as a note, anything else answers with all of them, a line each."""
import json

import durable


class Notes:
    TYPE, VERSION, LOADS = "notes", 1, [1]

    def __init__(self, config, version, state):
        self.notes = [] if state is None else json.loads(state)
        if not isinstance(self.notes, list):
            raise ValueError("the state is not a list of notes")

    def state(self):
        return json.dumps(self.notes).encode()

    def handle(self, method, path, body):
        if method == "POST":
            self.notes.append(body.decode(errors="replace"))
            return 201, f"{len(self.notes)}\n".encode(), True
        return 200, "".join(note + "\n" for note in self.notes).encode(), False


if __name__ == "__main__":
    durable.run(Notes)
