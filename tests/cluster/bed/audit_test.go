package bed

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// event is a line of the audit log, received so many seconds after noon.
func event(id, stage, verb, uri, object string, second int) string {
	at := time.Date(2026, 11, 21, 12, 0, second, 0, time.UTC).Format("2006-01-02T15:04:05.000000Z")
	if object != "" {
		object = `"objectRef":` + object + `,`
	}
	return `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"` + id + `","stage":"` + stage + `",` +
		`"requestURI":"` + uri + `","verb":"` + verb + `","user":{"username":"u","extra":{"authentication.kubernetes.io/pod-name":["velero-1"]}},` +
		object + `"userAgent":"velero/v1.18.3 (linux/amd64) ","requestReceivedTimestamp":"` + at + `","stageTimestamp":"` + at + `"}` + "\n"
}

func TestVeleroRequests(t *testing.T) {
	b := &Bed{Dir: t.TempDir()}
	require.NoError(t, os.MkdirAll(b.run(), 0o755))
	write := func(name string, lines ...string) {
		require.NoError(t, os.WriteFile(filepath.Join(b.run(), name), []byte(strings.Join(lines, "")), 0o600))
	}
	const pods, exec = `{"resource":"pods","namespace":"a","apiVersion":"v1"}`, `{"resource":"pods","subresource":"exec","apiVersion":"v1"}`
	write("audit-2026-11-21T12-00-03.000.log",
		event("1", "ResponseComplete", "get", "/api/v1/namespaces/a/pods/x", pods, 0),
		event("2", "ResponseStarted", "watch", "/api/v1/pods?watch=true", pods, 1))
	write("audit.log",
		event("2", "ResponseComplete", "watch", "/api/v1/pods?watch=true", pods, 1),
		event("3", "ResponseComplete", "list", "/apis/s/v1/x", `{"resource":"x","apiGroup":"s"}`, 4),
		event("4", "ResponseComplete", "create", "/api/v1/x", exec, 5),
		event("5", "ResponseComplete", "get", "/apis/apps/v1?timeout=32s", "", 6),
		event("6", "ResponseComplete", "get", "/apis", "", 7),
		`{"auditID":"7","half`)
	noon := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	at := func(second int) time.Time { return noon.Add(time.Duration(second) * time.Second) }

	found, err := b.VeleroRequests(at(1), at(6))
	require.NoError(t, err)
	assert.Equal(t, []Request{
		{"watch", "pods", "velero-1", "velero", "/api/v1/pods?watch=true", at(1)},
		{"list", "x.s", "velero-1", "velero", "/apis/s/v1/x", at(4)},
		{"create", "pods/exec", "velero-1", "velero", "/api/v1/x", at(5)},
		{"get", "/apis", "velero-1", "velero", "/apis/apps/v1?timeout=32s", at(6)},
	}, found)

	write("audit.log", "no event\n")
	_, err = b.VeleroRequests(at(0), at(6))
	require.ErrorContains(t, err, `event "no event\n"`)
}
