"""The tables, which the service's migration has made."""

from django.db import models


class User(models.Model):
    id = models.TextField(primary_key=True)
    email = models.TextField(null=True, unique=True)

    class Meta:
        managed = False
        db_table = "users"


class Task(models.Model):
    user = models.ForeignKey(User, on_delete=models.CASCADE)
    title = models.CharField(max_length=255)
    description = models.TextField(max_length=5000, null=True, blank=True)
    status = models.TextField(default="incomplete")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        managed = False
        db_table = "tasks"
        ordering = ["-created_at", "-id"]
