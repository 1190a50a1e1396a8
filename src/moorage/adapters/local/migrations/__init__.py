"""Alembic's folder: how databases of older versions become those of this one."""
