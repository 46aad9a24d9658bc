"""A task as JSON, both ways."""

from rest_framework import serializers

from tasks.models import Task


class TaskSerializer(serializers.ModelSerializer):
    class Meta:
        model = Task
        fields = ["id", "user_id", "title", "description", "status", "created_at", "updated_at"]
        read_only_fields = ["status"]
