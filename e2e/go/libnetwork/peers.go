//go:build peers

// Package libnetwork pins what the network tests of podman's library import.
package libnetwork

import (
	_ "github.com/containers/common/libnetwork/cni"
	_ "github.com/containers/common/pkg/netns"
	_ "github.com/containers/storage/pkg/stringid"
	_ "github.com/containers/storage/pkg/unshare"
	_ "github.com/onsi/ginkgo/v2"
	_ "github.com/onsi/gomega"
)
