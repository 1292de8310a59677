package quiesce

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"stillpoint.io/stillpoint/internal/podexec"
	"stillpoint.io/stillpoint/internal/render"
)

// Errors contain no part of a secret, wherever the output is truncated.
func TestErrorsShowNoPartOfASecret(t *testing.T) {
	const secret = "correct-horse-battery-staple"
	eachShell(t, func(t *testing.T, h *host) {
		for _, size := range []int{podexec.TailLimit, podexec.KeepLimit} {
			for _, into := range []int{1, len(secret) / 2, len(secret) - 1} {
				app := newApplication(t)
				plan := app.plan()
				plan.Mask = render.NewMasker([]byte(secret))
				// The last size bytes begin within the secret.
				script := fmt.Sprintf("printf %%s%%s%%s '%s' '%s' '%s' >&2; exit 7", strings.Repeat("=", 3000), secret, strings.Repeat("+", size-into))
				plan.Hooks[1].Pre = step("freeze", render.Call{Namespace: "shop", Pod: "db-0", Container: "side", Command: []string{"sh", "-c", script}})
				_, err := Freeze(t.Context(), Tools{Executor: h}, plan, quiet())
				require.ErrorContains(t, err, "exit code 7: ")
				_, shown, _ := strings.Cut(err.Error(), "exit code 7: ")
				assert.Empty(t, strings.Trim(shown, "=+*"))
				assert.LessOrEqual(t, len(shown), podexec.TailLimit)
				assert.Greater(t, len(shown), podexec.TailLimit/2)
			}
		}
	})
}
