//go:build peers

// Package cni pins the newest cnitool and the reference plugins of the 1.9 series: tools of this module, and what
// their own tests import.
package cni

import (
	_ "github.com/onsi/ginkgo/v2"
	_ "github.com/onsi/gomega"
)
