//! The VXLAN overlay will live here: the plugin `overlay` (compatible name `flannel`) and `overlay-agent`, whose
//! subnets are leased in etcd. Nothing is served yet.
#![deny(unsafe_code)]
