package blueprint

import (
	"fmt"
	"maps"
	"sync"
	"text/template"

	"github.com/Masterminds/sprig/v3"
)

// textFuncs are sprig's functions for text as Kanister has them: without those
// that FIPS forbids, without a way to the process's environment, and bounded.
// It is built on first use, because a plugin process that quiesces nothing
// should start without it.
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
	// Kanister lets these through. Here templates are rendered inside Velero's
	// process tree, whose environment can hold the credentials of the object
	// storage, and a blueprint may be a tenant's.
	for _, name := range []string{"env", "expandenv"} {
		funcs[name] = refuse(name, "a blueprint must not read Velero's environment")
	}
	maps.Copy(funcs, printing)
	for name, function := range funcs {
		funcs[name] = bounded(name, function)
	}
	return funcs
})

func refuse(name, reason string) func(...any) (string, error) {
	return func(...any) (string, error) {
		return "", refusal(fmt.Sprintf("%s is refused: %s", name, reason))
	}
}
