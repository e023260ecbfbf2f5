//! What many kernels do not have: VLANs, VLANs on bridges, ipvlan, SCTP. `make test-guest` runs these tests.

mod bridge_vlan;
mod ipvlan;
mod macvlan;
mod sctp;
mod vlan;
