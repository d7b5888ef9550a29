//! control/policy.
