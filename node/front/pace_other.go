//go:build !linux

package front

// controlOf and setControl: other systems are not asked.

func controlOf(any) string { return "" }

func setControl(any, string) bool { return false }
