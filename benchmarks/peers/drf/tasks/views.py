"""The calls."""

from typing import Any

from django.db.models import QuerySet
from rest_framework.decorators import action
from rest_framework.mixins import CreateModelMixin, ListModelMixin, RetrieveModelMixin
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import exception_handler
from rest_framework.viewsets import GenericViewSet

from tasks.models import Task, User
from tasks.serializers import TaskSerializer

MESSAGES = {401: "Unauthorized", 403: "Forbidden", 404: "Task not found"}


class TaskViewSet(CreateModelMixin, RetrieveModelMixin, ListModelMixin, GenericViewSet):
    serializer_class = TaskSerializer

    def get_queryset(self) -> QuerySet[Task]:
        return Task.objects.filter(user_id=self.kwargs["user_id"])

    def perform_create(self, serializer: TaskSerializer) -> None:
        user, _ = User.objects.get_or_create(id=self.kwargs["user_id"])
        serializer.save(user=user)

    @action(detail=True, methods=["patch"])
    def complete(self, request: Request, **_: Any) -> Response:
        task = self.get_object()
        task.status = "incomplete" if task.status == "complete" else "complete"
        task.save()
        return Response(self.get_serializer(task).data)


def error(exc: Exception, context: dict[str, Any]) -> Response | None:
    response = exception_handler(exc, context)
    if response is not None:
        response.data = {"error": MESSAGES.get(response.status_code, str(response.data))}
    return response
