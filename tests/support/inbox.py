"""An inbox of a search in this process: requests of people, and what they are told."""

from components.records.commands import Request


class Inbox:
    def __init__(self, *commands):
        self.requests = [Request(request_id=str(i), command=each, by="me", time=0.0) for i, each in enumerate(commands)]
        self.replies = []

    def poll(self):
        return self.requests

    def reply(self, request, reply):
        self.replies.append(reply)
