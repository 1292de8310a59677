package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNumbered(t *testing.T) {
	for text, want := range map[string]int{"": 0, "1": 0, "1\n": 1, "1\n2\n3": 2, "1\n2\n3\n": 3} {
		n, err := numbered(text)
		require.NoError(t, err, "%q", text)
		assert.Equal(t, want, n, "%q", text)
	}
	for text, want := range map[string]string{
		"1\n3\n":     `line 2 is "3"`,
		"1\n2\n1\n":  `line 3 is "1"`,
		"1\n\n3\n":   `line 2 is ""`,
		"1\n2\x00\n": `line 2 is "2\x00"`,
	} {
		_, err := numbered(text)
		require.ErrorContains(t, err, want, "%q", text)
	}
}
