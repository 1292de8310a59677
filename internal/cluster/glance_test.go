package cluster

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestGlance(t *testing.T) {
	var requests []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests = append(requests, r.Method+" "+r.URL.RequestURI())
		switch r.URL.Path {
		case "/api/v1/namespaces/shop/pods/gone":
			w.WriteHeader(http.StatusNotFound)
		case "/api/v1/namespaces/shop/pods/busy":
			w.WriteHeader(http.StatusTooManyRequests)
		}
		fmt.Fprintf(w, "answer %d as %s", len(requests), r.Header.Get("Accept"))
	}))
	defer server.Close()
	glance := NewGlance()
	client := &http.Client{Transport: glance.Wrap(http.DefaultTransport)}
	ask := func(method, path string, headers ...string) (int, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, http.NoBody)
		require.NoError(t, err)
		for i := 0; i < len(headers); i += 2 {
			request.Header.Set(headers[i], headers[i+1])
		}
		response, err := client.Do(request)
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		return response.StatusCode, string(body)
	}

	for name, test := range map[string]struct {
		method, path string
		headers      []string
		asked        int // of two times
		status       int
	}{
		"object":             {"GET", "/api/v1/namespaces/shop/pods/db", nil, 1, http.StatusOK},
		"list":               {"GET", "/api/v1/namespaces/shop/pods?limit=5", nil, 1, http.StatusOK},
		"the namespace":      {"GET", "/api/v1/namespaces/shop", nil, 1, http.StatusOK},
		"not there":          {"GET", "/api/v1/namespaces/shop/pods/gone", nil, 1, http.StatusNotFound},
		"no answer yet":      {"GET", "/api/v1/namespaces/shop/pods/busy", nil, 2, http.StatusTooManyRequests},
		"of no namespace":    {"GET", "/api/v1/persistentvolumes", nil, 2, http.StatusOK},
		"watch":              {"GET", "/api/v1/namespaces/shop/pods?watch=true", nil, 2, http.StatusOK},
		"command":            {"GET", "/api/v1/namespaces/shop/pods/db/exec?command=true", []string{"Upgrade", "websocket"}, 2, http.StatusOK},
		"change":             {"POST", "/api/v1/namespaces/shop/pods", nil, 2, http.StatusOK},
		"in another shape":   {"GET", "/api/v1/namespaces/shop/pods/db", []string{"Accept", "text/plain"}, 1, http.StatusOK},
		"similar namespaces": {"GET", "/api/v1/namespaces/shop-2/pods", nil, 1, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			requests = nil
			status, first := ask(test.method, test.path, test.headers...)
			assert.Equal(t, test.status, status)
			status, second := ask(test.method, test.path, test.headers...)
			assert.Equal(t, test.status, status)
			assert.Len(t, requests, test.asked)
			assert.Equal(t, test.asked == 1, first == second)
		})
	}

	requests = nil
	glance.Forget("shop")
	for _, path := range []string{"/api/v1/namespaces/shop", "/api/v1/namespaces/shop/pods?limit=5", "/api/v1/namespaces/shop-2/pods"} {
		ask("GET", path)
	}
	assert.Equal(t, []string{"GET /api/v1/namespaces/shop", "GET /api/v1/namespaces/shop/pods?limit=5"}, requests)
}
