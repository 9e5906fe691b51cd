"""Quadratic programs, affine sets, KKT systems and quasi-Newton matrices."""
