//! control/api.
