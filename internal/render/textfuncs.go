package render

import (
	"fmt"
	"sync"
	"text/template"

	"github.com/Masterminds/sprig/v3"
)

// textFuncs are sprig's functions for text as Kanister has them, without those that FIPS
// forbids, and without access to the environment and the network.
var textFuncs = sync.OnceValue(func() template.FuncMap {
	funcs := sprig.TxtFuncMap()
	generate, _ := funcs["genPrivateKey"].(func(string) string)
	funcs["genPrivateKey"] = func(kind string) (string, error) {
		switch kind {
		case "rsa", "ecdsa", "ed25519":
			return generate(kind), nil
		default:
			return "", refusal("genPrivateKey of this type is refused: it is not FIPS compliant, and Kanister refuses it too; the types are ecdsa, ed25519, rsa")
		}
	}
	for _, name := range []string{"bcrypt", "derivePassword", "htpasswd"} {
		funcs[name] = refuse(name, "it is not FIPS compliant, and Kanister refuses it too")
	}
	// Kanister allows these. Here a blueprint may be a tenant's, who has no right to
	// Velero's environment and network.
	for _, name := range []string{"env", "expandenv"} {
		funcs[name] = refuse(name, "a blueprint must not read Velero's environment")
	}
	funcs["getHostByName"] = refuse("getHostByName", "a blueprint must not use Velero's network")
	return funcs
})

func refuse(name, reason string) func(...any) (string, error) {
	return func(...any) (string, error) {
		return "", refusal(fmt.Sprintf("%s is refused: %s", name, reason))
	}
}
